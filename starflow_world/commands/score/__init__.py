"""The verb score: anomaly scores of a folder of episodes, or the likelihood of a clip under a video model."""

from starflow_world.commands.score.settings import ScoreSettings


class ScoreRecordings(ScoreSettings):
    """Score a folder of episodes by a scorer (--data, --scorer), or one clip by a converted video model (--video).

    For episodes: tables, a summary and pictures of flagged episodes; an interrupted run continues. For a clip: nats
    and bits per dimension of its noisy latents, for each latent frame and for the whole clip.
    """

    def run(self) -> None:
        """Score the clip or the episodes."""
        if self.video:
            from starflow_world.commands.score.clip import score_clip

            score_clip(self, self.video)
        else:
            from starflow_world.commands.score.folder import score_folder

            score_folder(self)
