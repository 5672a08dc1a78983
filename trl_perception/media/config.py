"""From the fields of a configuration to what decodes media."""

from transformers import ProcessorMixin

from .cache import MediaCache
from .limits import MediaLimits
from .loader import MediaLoader
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


class MediaOptions(DecoderOptions):
    """Mixin of [`GRPOVideoConfig`], whose fields on media it reads."""

    def prompt_preparer(self, processor: ProcessorMixin) -> PromptPreparer:
        """What makes prompts of rows under these settings."""
        kept = self.media_cache_dir and MediaCache(self.media_cache_dir, int(self.media_cache_dir_gb * 2**30))
        return PromptPreparer(
            processor,
            loader=MediaLoader(self.media_workers, self.media_cache_mb << 20, kept and kept.read),
            video_settings=self.video_settings,
            image_min_pixels=self.image_min_pixels,
            image_max_pixels=self.image_max_pixels,
            media_limits=self.media_limits,
            max_prompt_length=self.max_prompt_length,
            chat_template_kwargs=self.chat_template_kwargs,
        )
