"""From the fields of a configuration to what decodes media."""

from collections.abc import Callable

from transformers import ProcessorMixin

from .cache import MediaCache
from .limits import MediaLimits
from .loader import MediaLoader, MediaRequest, Medium
from .prompts import PromptPreparer
from .settings import VideoSettings


class DecoderOptions:
    """Mixin of configurations, whose fields on sampling, sizes and limits it reads."""

    @property
    def video_settings(self) -> VideoSettings:
        """Frame sampling and sizes as the decoder takes them."""
        return VideoSettings(
            fps=self.video_fps,
            min_frames=self.video_min_frames,
            max_frames=self.video_max_frames,
            min_pixels=self.video_min_pixels,
            max_pixels=self.video_max_pixels,
            total_pixels=self.video_total_pixels,
        )

    @property
    def media_limits(self) -> MediaLimits:
        """What one medium may cost, as the decoder takes it."""
        return MediaLimits(self.media_max_pixels, self.media_max_frames, self.media_timeout)

    @property
    def read_cached(self) -> Callable[[MediaRequest, int | None], tuple[Medium, bool]] | None:
        """What reads media by way of `media_cache_dir`, as [`MediaLoader`] takes it; None without that folder."""
        if not self.media_cache_dir:
            return None
        return MediaCache(self.media_cache_dir, int(self.media_cache_dir_gb * 2**30)).read


class MediaOptions(DecoderOptions):
    """Mixin of [`GRPOVideoConfig`], whose fields on media it reads."""

    def prompt_preparer(self, processor: ProcessorMixin) -> PromptPreparer:
        """What makes prompts of rows under these settings."""
        return PromptPreparer(
            processor,
            loader=MediaLoader(self.media_workers, self.media_cache_mb << 20, self.read_cached),
            video_settings=self.video_settings,
            image_min_pixels=self.image_min_pixels,
            image_max_pixels=self.image_max_pixels,
            media_limits=self.media_limits,
            max_prompt_length=self.max_prompt_length,
            chat_template_kwargs=self.chat_template_kwargs,
        )
