"""The pixels: uploads coming in, thumbnails and views going out."""
