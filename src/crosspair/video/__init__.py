"""Read clips from video files: open, sample by time, decode, crop, batch.

Import the submodules directly. Decoding processes import `crosspair.video.decode`,
`crosspair.video.integrity` and `crosspair.video.views` without loading torch.
"""
