"""Results of studies, for the notebooks in nbs/paper/: reading, intervals over seeds and images, words."""
import json
import math
import statistics
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.collect import check_result, unpack
from semeda.edges import InputError
from semeda.loss_registry import TABLE1, split_loss
from semeda.metrics import draw_images, scores_of, scores_on_draws
from semeda.trainer import Config, resolve

SEEDS = 3 # fewer say nothing about training's chance
PPCE, BEST = "table1_01", "table1_11" # the baseline, and the best row of the paper
METHOD = ("row", "loss", "lambdas", "relu", "seed") # parameters in which the rows of Table 1 differ


def load_study(folder):
    "Results of a study: row -> seed -> record with `counts` as a tensor, and the like of runs that diverged; refuses runs that cannot be compared"
    folder, found, diverged = Path(folder), {}, {}
    for path in sorted(folder.glob("*-s*.json")):
        record = json.loads(path.read_text())
        row, _, seed = path.stem.rpartition("-s")
        if row in TABLE1: check_result(record, folder.name, path.stem)
        record["config"] = asdict(Config()) | record["config"] # an older version had fewer parameters
        if "diverged" in record: diverged.setdefault(row, {})[int(seed)] = record
        else: found.setdefault(row, {})[int(seed)] = record | dict(counts=unpack(record["counts"]))
    records = [r for seeds in found.values() for r in seeds.values()]
    for other in records[1:]:
        differ = [key for key in ("labels", "data") if other[key] != records[0][key]]
        differ += [key for key, value in other["config"].items() if _in_table(other) and _in_table(records[0]) and key not in METHOD and value != records[0]["config"].get(key)]
        if differ: raise InputError(f"results {records[0]['name']} and {other['name']} of study {folder.name} differ in {', '.join(differ)}; expected runs on the same data with the same budget")
    return found, diverged


def _in_table(record):
    return record["name"].rpartition("-s")[0] in TABLE1


def draws_of(record, resamples=2000, seed=0):
    "Scores of a run, and the same on each of `resamples` draws of its images: name -> (value, draws)"
    counts = record["counts"]
    weights = draw_images(len(counts), resamples, seed)
    draws = scores_on_draws(counts, weights)
    scores = {name: (value, draws[name]) for name, value in scores_of(counts.sum(dim=0)).items()}
    for name, values in record["images"].items():
        values = torch.tensor(values, dtype=torch.double)
        scores[name] = values.mean(), weights @ values / len(values)
    return scores


def over_seeds_and_images(values, draws, level=.95, seed=0):
    "Mean over the S seeds of `values` (S, ...) and its interval, from `draws` (R, S, ...) on resampled images: their mean over seeds, moved by Student's t"
    resamples, seeds = draws.shape[:2]
    mean = draws.mean(dim=1)
    if seeds > 1:
        normal = torch.randn(resamples, seeds, generator=torch.Generator().manual_seed(seed + 1), dtype=draws.dtype)
        t = normal[:, 0] / normal[:, 1:].square().mean(dim=1).sqrt() # S - 1 degrees of freedom
        mean = mean + t.view(-1, *[1] * (mean.dim() - 1)) * draws.std(dim=1) / math.sqrt(seeds)
    low, high = mean.nanquantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=mean.dtype), dim=0)
    return values.mean(dim=0), low, high


class Study:
    "The runs of a study and the differences between its rows"
    def __init__(self, folder, resamples=2000):
        self.folder, self.resamples, self._draws = Path(folder), resamples, {}
        self.runs, self.diverged = load_study(folder)

    def rows(self):
        "Those of Table 1 in its order, then the others"
        mine = {*self.runs, *self.diverged}
        return [*(row for row in TABLE1 if row in mine), *sorted(mine - set(TABLE1))]

    def config(self, row):
        return next(iter((self.runs.get(row) or self.diverged[row]).values()))["config"]

    def draws(self, row, seed):
        if (row, seed) not in self._draws: self._draws[row, seed] = draws_of(self.runs[row][seed], self.resamples)
        return self._draws[row, seed]

    def seeds(self, *rows):
        "Seeds that all of these rows have"
        return sorted(set.intersection(*(set(self.runs.get(row, ())) for row in rows)))

    def difference(self, a, b, name, width=None):
        "Of row b less row a, paired by seed: mean, low, high; None without a common seed"
        if not (seeds := self.seeds(a, b)): return None
        pick = lambda score: score[..., min(width, score.shape[-1]) - 1] if width else score
        pairs = [(self.draws(a, s)[name], self.draws(b, s)[name]) for s in seeds]
        values, draws = (torch.stack([pick(y[i]) - pick(x[i]) for x, y in pairs], dim=i) for i in (0, 1))
        return tuple(v.item() for v in over_seeds_and_images(values, draws))

    def claim(self, a, b, name, width=None, sign=1, limit=0, scale=100, digits=1, if_diverged="does not"):
        """Figure and verdict of a claim on row b less row a

        A run of b that diverged decides it: `if_diverged`. One of a decides it the other way."""
        difference, lost = self.difference(a, b, name, width), {row: len(self.diverged.get(row, ())) for row in (a, b)}
        of = {row: n + len(self.runs.get(row, ())) for row, n in lost.items()}
        told = "; ".join(f"{lost[row]} of {of[row]} runs of {row_name(row, self)} diverged" for row in (a, b) if lost[row])
        figure = "; ".join(filter(None, [words(difference, scale, digits) if difference else "", told])) or "not run"
        if not all(of.values()) or not told: return figure, verdict(difference, len(self.seeds(a, b)), sign, limit)
        if min(of.values()) < SEEDS: return figure, f"not tested here: {min(of.values())} seed{'s' * (min(of.values()) > 1)}, expected {SEEDS}"
        if all(lost.values()): return figure, "not tested here: both diverge"
        return figure, f"{if_diverged if lost[b] else dict(holds='does not').get(if_diverged, 'holds')}: diverges"

    def curve(self, a, b, name):
        "Of row b less row a at each width, paired by seed: mean, low, high, each (W,)"
        pairs = [(self.draws(a, s)[name], self.draws(b, s)[name]) for s in self.seeds(a, b)]
        return over_seeds_and_images(*(torch.stack([y[i] - x[i] for x, y in pairs], dim=i) for i in (0, 1)))

    def mean(self, row, get):
        "Mean of a figure over a row's seeds; None where there is none"
        values = [v for v in (get(r) for r in self.runs.get(row, {}).values()) if v is not None]
        return statistics.mean(values) if values else None


def row_name(row, study=None):
    "A row of Table 1, or a variant of a study, by the loss that it was trained with"
    settings = TABLE1[row] if row in TABLE1 else study.config(row)
    base, peer = split_loss(settings["loss"])
    name = dict(ppce="PPCE", ubernet="Ubernet", ppce_edges="PPCE on edges", semeda="SEMEDA", edge_weighted="edge-weighted PPCE")[base]
    weights = [f"{v:g}" for v in settings["lambdas"] or ()]
    if base == "semeda": name += f" ({', '.join(weights)}) {settings['relu']} ReLU" + "".join(f", {settings[k]}" for k, usual in dict(norm="l1", reduction="channel_mean").items() if settings.get(k, usual) != usual)
    elif base != "ppce": name += f" {weights[0]}"
    return name + (f" + {peer.removesuffix('Loss')}" if peer else "")


def shipped_rows(study):
    "Rows that were trained as `SemedaLoss` is by default"
    default = asdict(resolve(loss="semeda")[0])
    same = lambda config: all(config[k] == default[k] for k in ("loss", "lambdas", "relu", "norm", "reduction"))
    return [row for row, runs in study.runs.items() if all(same(r["config"]) for r in runs.values())]


def words(found, scale=100, digits=1):
    "A difference with its interval"
    if found is None: return "not run"
    value, low, high = (scale * v for v in found)
    return f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def verdict(found, seeds, sign=1, limit=0):
    "Whether a difference lies on the claimed side of the limit, above for sign 1 and below for -1, with its whole interval"
    if not seeds: return "not tested here"
    if seeds < SEEDS: return f"not tested here: {seeds} seed{'s' * (seeds > 1)}, expected {SEEDS}"
    low, high = sorted(sign * (v - limit) for v in found[1:])
    return "holds" if low > 0 else "does not: the opposite" if high < 0 else f"does not: the interval includes {100 * limit:g}"
