"""The matmul engines: one component for each kind of parameters."""

from lutra_golden.matmul.engine import EngineParams
from lutra_golden.matmul.lookup import LookupParams
from lutra_hw.matmul.engine import MatmulEngine
from lutra_hw.matmul.lookup import LookupEngine

__all__ = ["build_engine"]


def build_engine(params: EngineParams) -> MatmulEngine | LookupEngine:
    """The engine of ``params``, behind :class:`lutra_hw.matmul.contract.MatmulEngineSignature`."""
    return LookupEngine(params) if isinstance(params, LookupParams) else MatmulEngine(params)
