"""Video files and URLs to clips: sampling by time, decoding, views, batches."""
