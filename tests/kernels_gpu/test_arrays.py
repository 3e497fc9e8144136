import numpy as np
import pytest

from lutra_kernels.arrays import (
    INTERPRETED,
    POISON,
    HostArray,
    check,
    download,
    empty,
    upload,
    zeros,
)

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_up_and_down(dtype: type[np.integer]) -> None:
    data = np.arange(6, dtype=dtype).reshape(2, 3)
    array = upload(data)
    assert array.data_ptr() % 16 == 0
    assert download(array).dtype == data.dtype
    assert (download(array) == data).all()
    data[0, 0] = 9
    assert download(array)[0, 0] == 0
    assert (download(zeros([3, 2], dtype)) == 0).all()


@pytest.mark.skipif(not INTERPRETED, reason="memory of a device is not poisoned")
def test_new_memory_is_poisoned_under_the_interpreter() -> None:
    array = empty([5], np.uint8)
    assert isinstance(array, HostArray)
    assert (array.data == POISON).all()


def test_check() -> None:
    array = zeros([2, 3], np.int8)
    check("x", array, [2, 3], np.int8)
    with pytest.raises(TypeError, match=r"^x must be int32, not int8$"):
        check("x", array, [2, 3], np.int32)
    with pytest.raises(ValueError, match=r"^x must be \[3, 2\], not \[2, 3\]$"):
        check("x", array, [3, 2], np.int8)


def test_host_arrays_are_contiguous() -> None:
    with pytest.raises(ValueError, match=r"^data must be C-contiguous$"):
        HostArray(np.zeros((4, 4))[:, ::2])
