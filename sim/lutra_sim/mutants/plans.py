"""Faults in plans and in what runs them: the tests beside each must notice them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

_DEVICE = ["host/serving/plans/test_device.py"]
_LANES = ["host/serving/plans/test_lanes.py"]
_PLANNER = ["host/serving/plans/test_planner.py"]
_PROFILE = ["host/serving/plans/test_profile.py"]
_SEARCH = ["host/serving/plans/test_search.py"]

MUTANTS = [
    *planted(
        "host/lutra/serving/plans/mover.py",
        _DEVICE,
        (
            "keys and values are not waited for",
            "        arriving, part.arriving = part.arriving, []\n",
            "        arriving, part.arriving = [], []\n",
        ),
        (
            "what is computed again begins one token late",
            "tokens = session.known(least, n)",
            "tokens = session.known(min(least + 1, n), n)",
        ),
        (
            "layers that are behind count as there",
            "if target.lengths[i] < n <= part.lengths[i]]",
            "if target.lengths[i] < n]",
        ),
        (
            "finished layers stay where they are",
            "for site in stage.sites if wanted else ():",
            "for site in ():",
        ),
        (
            "layers go where they were computed",
            "                if site in sites:\n                    continue\n",
            "",
        ),
    ),
    *planted(
        "host/lutra/serving/plans/session.py",
        _DEVICE,
        (
            "what is cut still counts",
            "        self.lengths = [min(n, length) for length in self.lengths]\n",
            "",
        ),
        (
            "layers that arrive do not count",
            "            self.lengths[layer] = own.length\n",
            "            pass\n",
        ),
        (
            "a copy begins empty",
            "return Part(session, [min(n, length) for length in self.lengths])",
            "return Part(session, [n for _ in self.lengths])",
        ),
        (
            "tokens that were restored are known",
            "return known if len(known) == len(found) else None",
            "return known",
        ),
    ),
    *planted(
        "host/lutra/serving/plans/device.py",
        _DEVICE,
        (
            "sessions stay where a failed try left them",
            "                self._leave_out(failed)\n                self.rewind(before)\n",
            "                self._leave_out(failed)\n",
        ),
        (
            "answers go where prompts do",
            "return plan.prefill if is_prompt else plan.decode",
            "return plan.prefill",
        ),
        (
            "a session keeps the plan of a device that failed",
            "if not session.plan.sites <= sites:",
            "if not sites:",
        ),
        (
            "the last greedy token counts as processed",
            "own.tokens.extend([token, *made.tokens[:-1]])",
            "own.tokens.extend([token, *made.tokens])",
        ),
        (
            "layers that were run do not count",
            "                        part.lengths[layer] += len(chunk[i].tokens)\n",
            "                        pass\n",
        ),
    ),
    *planted(
        "host/lutra/serving/plans/device.py",
        _PLANNER,
        (
            "what passes took is not learnt from",
            "len(self.took) >= _LESSON",
            "len(self.took) < 0",
        ),
    ),
    *planted(
        "host/lutra/serving/plans/legs.py",
        _DEVICE,
        (
            "logits of a chunk from the prompt's first on",
            "min(max(self.logits_from - first, 0), len(tokens))",
            "min(self.logits_from, len(tokens))",
        ),
        (
            "the next stage begins with tokens",
            "replace(portion, residual=result.residual)",
            "replace(portion, residual=portion.residual)",
        ),
        (
            "errors of one of several threads are lost",
            "    if errors:\n        raise errors[0]\n    return done\n",
            "    return done\n",
        ),
    ),
    *planted(
        "host/lutra/serving/plans/live.py",
        _DEVICE,
        (
            "a device that failed is used again",
            "[site for site in self.left if site != failed.site]",
            "[site for site in self.left]",
        ),
    ),
    *planted(
        "host/lutra/serving/plans/rows.py",
        _DEVICE,
        (
            "the error of who waited is told",
            "            raise errors[0]\n",
            "            raise errors[-1]\n",
        ),
        (
            "a meeting that somebody left goes on",
            "                self._meetings.pop(stage.sites, None)\n",
            "                pass\n",
        ),
    ),
    *planted(
        "host/lutra/serving/plans/lanes.py",
        _LANES,
        (
            "all requests in the first thread",
            "min(self._lanes, key=lambda lane: sum(each.n_requests for each in set(lane)))",
            "self._lanes[0]",
        ),
        ("one thread for all stages", "for _ in plan.decode:", "for _ in plan.decode[:1]:"),
    ),
    *planted(
        "host/lutra/serving/batch.py",
        _LANES,
        (
            "requests that are handed on stay, too",
            "            self._running.remove(request)\n            self._hand_on",
            "            self._hand_on",
        ),
        (
            "requests that come from elsewhere are lost",
            "            self._running += self._adopted\n",
            "",
        ),
    ),
    *planted(
        "host/lutra/serving/plans/profile.py",
        [*_PROFILE, *_SEARCH],
        (
            "the position does not count",
            "[_between(row, j, along) for row in",
            "[row[0] for row in",
        ),
        (
            "every pass begins where the first did",
            "total += self.part_s(n, position + done, layers)",
            "total += self.part_s(n, position, layers)",
        ),
        (
            "no rows take no time",
            "return max(1 - saved / max(whole, 1e-12), 0.0)",
            "return rows",
        ),
        (
            "passes of few tokens correct those of many",
            "abs(log(self.tokens[i] / each.tokens))",
            "abs(log(self.tokens[i]))",
        ),
        (
            "what noise there is corrects",
            "if ratio > 0 and abs(ratio - 1) > _DRIFT:",
            "if ratio > 0:",
        ),
        (
            "half of the rows are corrected by the whole",
            "self.half.corrected(divided or whole)",
            "self.half.corrected(whole)",
        ),
        (
            "heads cost what rows do",
            "(1 - heads) * of_heads",
            "(1 - rows) * of_heads",
        ),
        (
            "the best kind of all",
            "return max(kinds, key=_KINDS.index)",
            "return min(kinds, key=_KINDS.index)",
        ),
        (
            "layers of other devices count",
            "left_out = (self.n_layers - layers)",
            "left_out = 0 * (self.n_layers - layers)",
        ),
    ),
    *planted(
        "host/lutra/serving/plans/measure.py",
        _PROFILE,
        (
            "half of the heads attend as long as all",
            "_share_of_growth(chunk, 1 / 2)",
            "_share_of_growth(chunk, 1.0)",
        ),
        (
            "devices that meet lose what they compute",
            "rows.run(stage, devices, model, calls)) - alone)",
            "rows.run(stage, devices, model, calls)))",
        ),
    ),
    *planted(
        "host/lutra/serving/plans/facts.py",
        _PROFILE,
        (
            "sessions that share a pass attend to each other",
            "attended = sum(m * p + m * (m + 1) / 2 for",
            "attended = n * positions[0] + n * (n + 1) / 2 + 0 * sum(m * p for",
        ),
        (
            "all sessions share one pass",
            "passes, rest = divmod(n, profile.pass_tokens)",
            "passes, rest = 0, n",
        ),
    ),
    *planted(
        "host/lutra/serving/plans/costs.py",
        _SEARCH,
        (
            "a device has prompts and answers at once",
            "if prompts_at & answers_at:",
            "if not prompts_at:",
        ),
        (
            "devices at work are alone",
            "seconds * (1 + sum(lost))",
            "seconds * (1 + 0 * sum(lost))",
        ),
        (
            "the company of those that have ended",
            "[site for site, end in others if end > now]",
            "[site for site, _ in others]",
        ),
        (
            "transfers do not wait for each other",
            "begin = max(done, arrived.get(target, 0.0))",
            "begin = done",
        ),
        (
            "answers do not wait for the hand-over",
            "ready = [run.times[0] + exposed for run in runs]",
            "ready = [run.times[0] for run in runs]",
        ),
        (
            "chunks do not wait for the device",
            "begin = max(ends[i], before + hops[i])",
            "begin = before + hops[i]",
        ),
        (
            "all prompts at once",
            "[_Run(workload.prompt, [(i + 1) * prefill]) for i in range(n)]",
            "[_Run(workload.prompt, [prefill]) for i in range(n)]",
        ),
        (
            "meetings take no time",
            "return max(each) + len(EXCHANGES) * len(stage.layers) * max(waits)",
            "return max(each)",
        ),
    ),
    *planted(
        "host/lutra/serving/plans/search.py",
        _SEARCH,
        (
            "the SLO is not heeded",
            "if slo.missed(each.cost) <= 1]\n    if not meeting",
            "]\n    if not meeting",
        ),
        (
            "a share however small",
            "    if min(shares) < _LEAST_SHARE:\n        return None\n",
            "",
        ),
        ("fewer devices are no merit", "AS_GOOD = 1.02", "AS_GOOD = 1.0"),
        (
            "the front has those that are beaten",
            "if not front or each.cost.tpot_s < front[-1].cost.tpot_s:",
            "if each:",
        ),
        ("plans that do not fit", "if all(fits(plan) for plan in plans):", "if plans:"),
        (
            "layers are not moved between stages",
            "        counts = best\n",
            "        break\n",
        ),
    ),
]
"""The faults."""
