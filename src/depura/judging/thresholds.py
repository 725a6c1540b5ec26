"""Where numbers of a record begin to say something: the same for checks and rankings."""

BROKEN = 0.02
"""Accuracy up to which a defence counts as broken."""

MASKED = 0.01
"""Share of gradients that are exactly zero from which on a row's gradient is called masked."""

EXPLODING = 1000
"""How many times the median of its image's gradients one may be long."""

AGREEMENT = 0.2
"""Cosine between halves of the draws below which more draws per step would help."""

CHANCE = 0.01
"""A difference between two draws of the same thing must be less likely than this to be called one."""

ALONE = 0.02
"""Share of images that an attack without gradients may break alone."""

UNMOVED = 0.03
"""Share of the images that are right without an attack whose example may be the image itself."""

NOT_FINITE_SHARE = 0.01
"""Share of predictions or gradients that are not finite above which a defence has no headline."""
