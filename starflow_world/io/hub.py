"""The Hugging Face hub: files of a repository in a local folder, and a folder as a commit of a repository.

huggingface_hub itself reads address, token, cache and offline mode from the environment (HF_ENDPOINT, HF_TOKEN,
HF_HOME, HF_HUB_OFFLINE).
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from starflow_world.errors import CheckpointError

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)


def fetch(repository: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Return a local folder with the files of a repository whose paths match one of the patterns `files`; those in the
    cache are not fetched again. revision: a branch, tag or commit; None: the main branch. Raises CheckpointError."""
    from huggingface_hub import snapshot_download

    check_names(repository, revision)
    with _one_error(repository, revision, "fetch"):
        return Path(str(snapshot_download(repository, revision=revision, allow_patterns=list(files))))


def push(
    folder: Path, repository: str, *, message: str, revision: str | None = None, private: bool | None = None
) -> str:
    """Upload the files of a folder as one commit and return its address; a repository or branch that does not exist is
    made, `private` (None: as the account has it by default). Raises CheckpointError."""
    from huggingface_hub import HfApi

    check_names(repository, revision)
    with _one_error(repository, revision, "push to"):
        hub = HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repository, branch=revision, exist_ok=True)
        done = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message, revision=revision)
        return str(done.commit_url)


def check_names(repository: str, revision: str | None) -> None:
    """Raise CheckpointError for what cannot name a repository or a revision, such as a path out of a folder."""
    if ".." in repository or not REPOSITORY.fullmatch(repository):
        raise CheckpointError("repository: expected a folder, or user/name as on the Hugging Face hub, found "
                              f"{repository!r:.120}")
    if revision is not None and (".." in revision or not REVISION.fullmatch(revision)):
        raise CheckpointError(f"revision: expected a branch, a tag or a commit of {repository}, found {revision!r:.80}")


@contextmanager
def _one_error(repository: str, revision: str | None, purpose: str) -> Iterator[None]:
    """Raise what goes wrong with the hub as a CheckpointError of one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{repository}: expected to be allowed to {purpose} it, found that it asks for consent; "
                              "ask for access on its page and log in with `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"{repository}: expected a folder or a repository of the hub, found neither; check the "
                              "name, and log in with `hf auth login` if it is private") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repository}: expected a branch, a tag or a commit, found no {revision!r:.80} there"
                              ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(f"{repository}: expected to reach the hub, or a whole copy in the cache, found neither "
                              f"({_reason(error)}); connect, or give the folder of a world") from error
    except Exception as error:  # network, rights, disk
        raise CheckpointError(f"{repository}: expected to {purpose} it, found {type(error).__name__}: {_reason(error)}"
                              "; try again: it goes on where it stopped") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
