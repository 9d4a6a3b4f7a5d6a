"""What is done to data sets once, before training: the work of `python -m lape_jax.prepare`.

splits.py      all splits of a data set, found by looking
check.py       what is there, and what cannot be read
download.py    a TFDS data set into array_record, by TFDS (which then needs TensorFlow)
tfrecord.py    one that is there as tfrecord into array_record, without TensorFlow
resize.py      a copy with smaller images
look.py        what is said of a data set that is looked over, whatever there is to learn
rewrite.py     such a copy as a TFDS data set
pack.py        a copy with images that are decoded already
shards.py      the writing of a copy, so that it can be interrupted
parts.py       what that needs
tfds_files.py  the files that TFDS wants to find
cifar.py       the official CIFAR files into .npz files
"""
