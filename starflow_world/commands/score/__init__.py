"""The verbs `calibrate` and `score`: scorers from folders of normal episodes, and scores of whole folders."""
