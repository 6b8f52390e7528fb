"""GenEval (Ghosh et al., 2023): does a picture show the objects, counts, colours and places that its prompt names?"""
