"""Score a folder of episodes: a CSV per episode, a summary, pictures of flagged episodes. Resumable.

An episode is done when the summary has its line, which is written last, and its video exists if videos are wanted. An
output folder belongs to one scorer and one set of episodes.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from starflow_world.commands.score.pictures import strip_chart, write_overlay_video
from starflow_world.commands.score.settings import ScoreSettings
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import Episode, read_episode
from starflow_world.errors import DataError
from starflow_world.io.files import claim, write_text
from starflow_world.io.reports import csv_text
from starflow_world.io.shards import file_digest
from starflow_world.score import Scorer, Scores
from starflow_world.score.normal import check_episode
from starflow_world.score.store import NUMBERS
from starflow_world.world import World, find_world

JOB_LIMIT = 3600.0
"""Time limit of an actor for one job, in seconds."""
SUMMARY, RECORD, SKIPPED = "summary.csv", "scores.json", "skipped.json"
COLUMNS = ("episode", "frames", "score", "p", "nats_per_dim", "alarms", "first_alarm", "change")


def score_folder(settings: ScoreSettings, *, batch: int = 8) -> Path:
    """Score all episodes in `settings.data`, `batch` windows at a time, and return the path of the summary.

    A bad episode raises a DataError that names it; with `skip_bad` it is skipped, and listed in skipped.json.
    """
    assert settings.data is not None
    assert settings.scorer is not None
    actors, out = settings.actors, settings.out.resolve()
    device = "auto" if not actors else "cuda" if settings.gpus_per_actor > 0 else "cpu"
    located = replace(settings, world=str(find_world(settings.world).resolve()), out=out)
    task = ScoringTask(located, settings.scorer.resolve(), device, batch)
    score = (replace(task, device="cpu") if actors else task).open()  # first raises for a scorer of another world
    episodes = EpisodeDataset(settings.data, skip_bad=settings.skip_bad)
    claim(out / RECORD, {"scorer": file_digest(task.scorer / NUMBERS), "data": str(settings.data.resolve())})
    lines, skipped = _read_summary(out / SUMMARY), dict(episodes.bad)
    done = {name for name in lines if not settings.overlays or (out / f"{name}.mp4").exists()}
    files = [str(path.resolve()) for path in episodes.paths if path.stem not in done]
    jobs = [json.dumps(files[start : start + 4 * batch]) for start in range(0, len(files), 4 * batch)]
    with tqdm(total=len(episodes), initial=len(episodes) - len(files), desc="score", unit="episode") as bar:
        for result in _by_actors(task, jobs, settings) if actors and jobs else map(score, jobs):
            scored = json.loads(result)
            lines |= scored["lines"]
            skipped |= scored["skipped"]
            write_text(out / SUMMARY, csv_text(COLUMNS, [list(lines[name].values()) for name in sorted(lines)]))
            bar.update(len(scored["lines"]) + len(scored["skipped"]))
    write_text(out / SKIPPED, json.dumps(skipped, indent=1, sort_keys=True))
    flagged = sum(int(line["alarms"]) > 0 for line in lines.values())
    print(f"{out / SUMMARY}: {len(lines)} episodes, {flagged} with flagged frames")
    if skipped:
        print(f"left out: {len(skipped)} bad episodes: {', '.join(sorted(skipped))}; reasons in {out / SKIPPED}")
    return out / SUMMARY


def _by_actors(task: "ScoringTask", jobs: list[str], settings: ScoreSettings) -> Iterator[str]:
    """Yield the result of each job, done by Ray actors."""
    from starflow_world.agents.pool import Crew, ordered
    from starflow_world.envs.shard import own_threads

    crew = Crew(settings.actors, settings.gpus_per_actor, own_threads(settings.actors), JOB_LIMIT)
    first = [Path(json.loads(job)[0]).name for job in jobs]
    return ordered(task, jobs, crew, name=lambda index: f"{first[index]} and the episodes after it")


@dataclass(frozen=True)
class ScoringTask:
    """Task that scores episodes and writes their tables and pictures, in this process or in an actor."""

    settings: ScoreSettings
    scorer: Path
    device: str
    batch: int

    def open(self) -> Callable[[str], str]:
        """Load world and scorer, and return a function from a JSON list of episode files to JSON: summary lines by
        episode, and the reasons why files were skipped."""
        world = World.load(self.settings.world, device=self.device)
        scorer = Scorer.load(self.scorer, world)

        def score(job: str) -> str:
            skipped: dict[str, str] = {}
            checked = {Path(file).stem: self._checked(world, Path(file), skipped) for file in json.loads(job)}
            episodes = {name: episode for name, episode in checked.items() if episode is not None}
            lines = {}
            scored = scorer.score(list(episodes.values()), batch=self.batch)
            for (name, episode), scores in zip(episodes.items(), scored, strict=True):
                self._write(name, episode, scores)
                whole = scores.episode
                numbers = (len(scores), whole["score"], whole["p"], whole["nats_per_dim"], whole["alarms"],
                           scores.first_alarm, whole["change"])
                lines[name] = dict(zip(COLUMNS, (name, *(f"{number:.9g}" for number in numbers)), strict=True))
            return json.dumps({"lines": lines, "skipped": skipped})

        return score

    def _checked(self, world: World, path: Path, skipped: dict[str, str]) -> Episode | None:
        """Read an episode; return None, with the reason in `skipped`, if it is bad and may be skipped."""
        try:
            episode = read_episode(path)
            check_episode(world, episode)
        except DataError as error:
            reason = str(error) if path.name in str(error) else f"{path}: {error}"
            if not self.settings.skip_bad:
                raise DataError(f"{reason} (--skip-bad leaves it out)") from None
            skipped[path.name] = reason
            return None
        return episode

    def _write(self, name: str, episode: Episode, scores: Scores) -> None:
        out = self.settings.out
        write_text(out / f"{name}.csv", scores.to_csv())
        if scores.alarm.any():
            figures = f"score {scores.episode['score']:.1f}, p {scores.episode['p']:.3g}"
            strip_chart(out / f"{name}.png", f"{name}: {figures}, {episode.text}", episode.frames, scores)
        if self.settings.overlays:
            write_overlay_video(out / f"{name}.mp4", episode.frames, scores)


def _read_summary(path: Path) -> dict[str, dict[str, str]]:
    """Return the lines of a summary by episode; empty if there is no file yet."""
    if not path.exists():
        return {}
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise DataError(f"{path}: expected the columns {COLUMNS}, found {reader.fieldnames}; use a new folder")
    return {line["episode"]: line for line in reader}
