"""GenEval (Ghosh et al., 2023): does an image show the objects, counts, colours and places that its prompt names?"""
