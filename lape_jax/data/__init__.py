"""Images and labels, from where they lie to fixed-size uint8 batches.

example.py   what a data set gives: examples, by index
sources.py   random-access data sets: `digits`, `folder`, `arrays`, and `open_split`, which picks one from a config
records.py   the fourth source: data sets that TFDS prepared as array_record
packed.py    the fifth: images that were decoded once and for all
listing.py   what directories hold
order.py     which example stands where: a pure function of (seed, step, position)
pictures.py  image files -> Pillow's images, and what the files say of themselves
exif.py      how images are turned
decode.py    encoded bytes -> pixels, and the crops for training and evaluation
jpeg.py      the part of a JPEG file that a crop needs
boxes.py     where a random crop lies
resample.py  resizing, exactly as Pillow does it or nearly so and fast
corrupt.py   images that cannot be read: skipped, named, counted, limited
survey.py    what a look at some files shows
canvas.py    whole images of any proportions in arrays of one size, and batches of them
memory.py    memory that is used again
batches.py   batches made ahead of the step, in threads (Grain)
pipeline.py  ... of images with a class each
resident.py  a small set decoded whole, to live on the device

offline/     what is done to data sets once, before training
"""
