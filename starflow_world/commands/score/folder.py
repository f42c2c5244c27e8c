"""Score a folder of episodes: a CSV per episode, a summary, pictures of what was flagged. Resumable.

An episode is done when the summary has its line, which is written last, and its video is there where one is wanted. A
folder belongs to one scorer and one set of episodes.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from starflow_world.commands.score.pictures import strip_chart, video
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import Episode, read_episode
from starflow_world.errors import DataError
from starflow_world.io.files import claim, write_text
from starflow_world.model.checkpoint import digest
from starflow_world.score import Scorer, Scores
from starflow_world.score.normal import check_episode
from starflow_world.score.store import NUMBERS
from starflow_world.world import World, find_world

TASK_LIMIT = 3600.0  # seconds that an actor may take for the episodes of a task
SUMMARY, RECORD, SKIPPED = "summary.csv", "scores.json", "skipped.json"
COLUMNS = ("episode", "frames", "score", "p", "nats_per_dim", "alarms", "first_alarm", "change")


def score_folder(
    world: str, data: Path, scorer: Path, out: Path, *, skip_bad: bool = False, videos: bool = False, batch: int = 8,
    actors: int = 0, gpus_per_actor: float = 0.0,
) -> Path:
    """Score all episodes of `data` into `out`; returns the summary's path.

    A bad episode is a DataError that names it; with skip_bad it is left out, listed in skipped.json and counted.
    actors: Ray actors that score, each with gpus_per_actor GPUs; 0: this process.
    """
    device = "auto" if not actors else "cuda" if gpus_per_actor > 0 else "cpu"
    folder, out = str(find_world(world).resolve()), out.resolve()
    work = Scoring(folder, Path(scorer).resolve(), out, device, skip_bad, videos, batch)
    here = replace(work, device="cpu").open() if actors else work.open()  # what does not fit is refused before all else
    episodes = EpisodeDataset(data, skip_bad=skip_bad)
    claim(out / RECORD, {"scorer": digest(Path(scorer) / NUMBERS), "data": str(Path(data).resolve())})
    lines, skipped = _read_summary(out / SUMMARY), dict(episodes.bad)
    done = {name for name in lines if not videos or (out / f"{name}.mp4").exists()}
    todo = [str(path.resolve()) for path in episodes.paths if path.stem not in done]
    tasks = [json.dumps(todo[start : start + 4 * batch]) for start in range(0, len(todo), 4 * batch)]
    with tqdm(total=len(episodes), initial=len(episodes) - len(todo), desc="score", unit="episode") as bar:
        for result in _spread(work, tasks, actors, gpus_per_actor) if actors and tasks else map(here, tasks):
            more = json.loads(result)
            lines |= more["lines"]
            skipped |= more["skipped"]
            _write_summary(out / SUMMARY, lines)
            bar.update(len(more["lines"]) + len(more["skipped"]))
    write_text(out / SKIPPED, json.dumps(skipped, indent=1, sort_keys=True))
    flagged = sum(int(line["alarms"]) > 0 for line in lines.values())
    print(f"{out / SUMMARY}: {len(lines)} episodes, {flagged} with flagged frames")
    if skipped:
        print(f"left out: {len(skipped)} bad episodes: {', '.join(sorted(skipped))}; reasons in {out / SKIPPED}")
    return out / SUMMARY


def _spread(work: "Scoring", tasks: list[str], actors: int, gpus_per_actor: float) -> Iterator[str]:
    """What comes of each task, done by actors."""
    from starflow_world.agents.pool import Crew, ordered
    from starflow_world.envs.shard import own_threads

    crew = Crew(actors, gpus_per_actor, own_threads(actors), TASK_LIMIT)
    first = [Path(json.loads(task)[0]).name for task in tasks]
    return ordered(work, tasks, crew, name=lambda place: f"{first[place]} and those behind it")


@dataclass(frozen=True)
class Scoring:
    """Work that actors can do as well: score some episodes, and write what there is to see of them."""

    world: str
    scorer: Path
    out: Path
    device: str
    skip_bad: bool
    videos: bool
    batch: int

    def open(self) -> Callable[[str], str]:
        """Load world and scorer. A task is a JSON list of episode files; its result the lines of the summary by
        episode, and why others were left out, as JSON."""
        world = World.load(self.world, device=self.device)
        judge = Scorer.load(self.scorer, world)

        def score(task: str) -> str:
            skipped: dict[str, str] = {}
            found = {Path(file).stem: self._good(world, Path(file), skipped) for file in json.loads(task)}
            good = {name: episode for name, episode in found.items() if episode is not None}
            lines = {}
            scored = judge.score(list(good.values()), batch=self.batch)
            for (name, episode), scores in zip(good.items(), scored, strict=True):
                _write(self.out, name, episode, scores, videos=self.videos)
                lines[name] = _line(name, scores)
            return json.dumps({"lines": lines, "skipped": skipped})

        return score

    def _good(self, world: World, path: Path, skipped: dict[str, str]) -> Episode | None:
        """The episode, checked; None where it is bad and may be left out."""
        try:
            episode = read_episode(path)
            check_episode(world, episode)
        except DataError as error:
            reason = str(error) if path.name in str(error) else f"{path}: {error}"
            if not self.skip_bad:
                raise DataError(f"{reason} (--skip-bad leaves it out)") from None
            skipped[path.name] = reason
            return None
        return episode


def _write(out: Path, name: str, episode: Episode, scores: Scores, *, videos: bool) -> None:
    write_text(out / f"{name}.csv", scores.to_csv())
    if scores.alarm.any():
        figures = f"score {scores.episode['score']:.1f}, p {scores.episode['p']:.3g}"
        strip_chart(out / f"{name}.png", f"{name}: {figures}, {episode.text}", episode.frames, scores)
    if videos:
        video(out / f"{name}.mp4", episode.frames, scores)


def _line(name: str, scores: Scores) -> dict[str, str]:
    whole = scores.episode
    numbers = (len(scores), whole["score"], whole["p"], whole["nats_per_dim"], whole["alarms"], scores.first_alarm,
               whole["change"])
    return dict(zip(COLUMNS, (name, *(f"{number:.9g}" for number in numbers)), strict=True))


def _read_summary(path: Path) -> dict[str, dict[str, str]]:
    """The lines of a summary by episode; none where there is none yet."""
    if not path.exists():
        return {}
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise DataError(f"{path}: expected the columns {COLUMNS}, found {reader.fieldnames}; use a new folder")
    return {line["episode"]: line for line in reader}


def _write_summary(path: Path, lines: dict[str, dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines[name] for name in sorted(lines))
    write_text(path, text.getvalue())
