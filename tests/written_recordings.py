"""Small recordings in the formats that `data import` reads, written by these functions after the formats' descriptions.

All hold the same thing: a square that moves to the right by the action of the row before, on a dark ground.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from starflow_world.io.media import VideoWriter

SIDE, FPS = 32, 10


def walk(length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, SIDE, SIDE, 3) and the actions (T,), 0 to 2, that were taken at them."""
    actions = np.random.default_rng(seed).integers(0, 3, length)
    frames = np.full((length, SIDE, SIDE, 3), 20, np.uint8)
    place = 2
    for t in range(length):
        frames[t, 12:20, place : place + 6] = (200, 160, 40)
        place = (place + 4 * int(actions[t])) % (SIDE - 6)
    return frames, actions


def write_video(path: Path, frames: np.ndarray, fps: int = FPS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps) as video:
        for frame in frames:
            video.add(frame)


def write_csv(path: Path, columns: dict[str, Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({key: pa.array(list(values)) for key, values in columns.items()})
    pq.write_table(table, path, row_group_size=5)


def videos(folder: Path, lengths: tuple[int, ...] = (9, 12), **changed: Any) -> Path:
    """A folder of MP4s with a CSV each; `changed` replaces columns, or leaves them out (None)."""
    for index, length in enumerate(lengths):
        frames, actions = walk(length, index)
        write_video(folder / f"clip{index}.mp4", frames)
        columns = {"timestamp": np.arange(length) / FPS, "action": actions,
                   "reward": np.arange(length) == length - 2, "terminated": np.arange(length) == length - 1,
                   "text": ["go right"] * length}
        columns = {key: value for key, value in {**columns, **changed}.items() if value is not None}
        write_csv(folder / f"clip{index}.csv", columns)
    return folder


def archives(folder: Path, lengths: tuple[int, ...] = (9, 12)) -> Path:
    """A folder of archives with one action less than frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, length in enumerate(lengths):
        frames, actions = walk(length, index)
        np.savez_compressed(folder / f"walk{index}.npz", frames=frames, actions=actions[:-1],
                            rewards=np.arange(length - 1) == length - 2, text="go right")
    return folder


def lerobot_rows(first: int, index: int, length: int, seed: int) -> dict[str, list[Any]]:
    """The columns of one episode, as both versions have them: actions of two numbers."""
    _, actions = walk(length, seed)
    vectors = np.stack((actions, np.linspace(-1, 1, length)), axis=1).astype(np.float32)
    return {
        "action": list(vectors), "observation.state": [np.zeros(3, np.float32)] * length,
        "timestamp": list((np.arange(length) / FPS).astype(np.float32)), "frame_index": list(range(length)),
        "episode_index": [index] * length, "index": list(range(first, first + length)), "task_index": [0] * length,
        "next.reward": [np.float32(0.5)] * length, "next.done": [t == length - 1 for t in range(length)],
    }


def lerobot_info(version: str, cameras: tuple[str, ...], picture: str = "video", **more: Any) -> dict[str, Any]:
    pictures = {camera: {"dtype": picture, "shape": [SIDE, SIDE, 3], "names": ["height", "width", "channels"]}
                for camera in cameras}
    numbers = {"action": ("float32", 2), "observation.state": ("float32", 3), "timestamp": ("float32", 1),
               "frame_index": ("int64", 1), "episode_index": ("int64", 1), "index": ("int64", 1),
               "task_index": ("int64", 1), "next.reward": ("float32", 1), "next.done": ("bool", 1)}
    features = {key: {"dtype": kind, "shape": [size], "names": None} for key, (kind, size) in numbers.items()}
    return {"codebase_version": version, "robot_type": "none", "fps": FPS, "chunks_size": 1000,
            "features": pictures | features, **more}


CAMERAS = ("observation.images.top", "observation.images.wrist")


def lerobot_2(folder: Path, lengths: tuple[int, ...] = (9, 12), cameras: tuple[str, ...] = CAMERAS) -> Path:
    """A LeRobot folder of version 2.1: a Parquet file per episode, an MP4 per episode and camera."""
    (folder / "meta").mkdir(parents=True)
    episodes, first = [], 0
    for index, length in enumerate(lengths):
        write_parquet(folder / f"data/chunk-000/episode_{index:06d}.parquet", lerobot_rows(first, index, length, index))
        for number, camera in enumerate(cameras):
            frames = np.roll(walk(length, index)[0], 8 * number, axis=1)
            write_video(folder / f"videos/chunk-000/{camera}/episode_{index:06d}.mp4", frames)
        episodes.append({"episode_index": index, "tasks": ["go right"], "length": length})
        first += length
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(episode) + "\n" for episode in episodes))
    (folder / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "go right"}) + "\n")
    info = lerobot_info("v2.1", cameras, total_episodes=len(lengths), total_frames=first,
                        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
                        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4")
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def lerobot_3(folder: Path, lengths: tuple[int, ...] = (9, 12), *, pictures: bool = False) -> Path:
    """A LeRobot folder of version 3.0: all episodes in one Parquet file, and in one MP4 (or, with `pictures`, as PNGs
    in the Parquet file)."""
    import cv2

    camera, rows, places, films, first = CAMERAS[0], {}, [], [], 0
    for index, length in enumerate(lengths):
        films.append(walk(length, index)[0])
        for key, values in lerobot_rows(first, index, length, index).items():
            rows.setdefault(key, []).extend(values)
        place = {"episode_index": index, "tasks": ["go right"], "length": length, "data/chunk_index": 0,
                 "data/file_index": 0, "dataset_from_index": first, "dataset_to_index": first + length,
                 "stats/action/min": [0.0, -1.0]}
        if not pictures:
            place |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": 0,
                      f"videos/{camera}/from_timestamp": first / FPS,
                      f"videos/{camera}/to_timestamp": (first + length) / FPS}
        places.append(place)
        first += length
    if pictures:
        rows[camera] = [{"bytes": cv2.imencode(".png", frame[..., ::-1])[1].tobytes(), "path": None}
                        for film in films for frame in film]
    else:
        write_video(folder / f"videos/{camera}/chunk-000/file-000.mp4", np.concatenate(films))
    write_parquet(folder / "data/chunk-000/file-000.parquet", rows)
    write_parquet(folder / "meta/episodes/chunk-000/file-000.parquet",
                  {key: [place[key] for place in places] for key in places[0]})
    write_parquet(folder / "meta/tasks.parquet", {"task_index": [0], "__index_level_0__": ["go right"]})
    info = lerobot_info("v3.0", (camera,), "image" if pictures else "video", total_episodes=len(lengths),
                        data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
                        video_path=None if pictures else
                        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4")
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def minari_set(folder: Path, lengths: tuple[int, ...] = (9, 12), *, plain: bool = False) -> Path:
    """A Minari dataset, written by the package: pictures and a mission, three actions; `plain`: pictures alone, and
    actions of two parts."""
    from gymnasium import spaces
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    picture = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    seen = spaces.Dict({"image": picture, "mission": spaces.Text(32), "direction": spaces.Discrete(4)})
    (folder / "data").mkdir(parents=True)
    space = spaces.Dict({"move": spaces.Discrete(3), "force": spaces.Box(0, 1, (1,))}) if plain else spaces.Discrete(3)
    storage = MinariStorage.new(folder / "data", picture if plain else seen, space, jpeg_encoding=False)
    for index, length in enumerate(lengths):
        frames, actions = walk(length, index)
        ends = [step == length - 2 for step in range(length - 1)]
        parts = {"image": list(frames), "mission": ["go right"] * length, "direction": [0] * length}
        forces = [np.full(1, 0.5, np.float32)] * (length - 1)
        storage.update_episodes([EpisodeBuffer(
            observations=list(frames) if plain else parts,
            actions={"move": list(actions[:-1]), "force": forces} if plain else list(actions[:-1]),
            rewards=[float(end) for end in ends], terminations=ends,
            truncations=[False] * (length - 1),
        )])
    storage.update_metadata({"dataset_id": "walk/right-v0", "minari_version": "0.5.4"})
    return folder
