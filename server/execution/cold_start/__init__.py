"""Cold start: steps with adapters whose pages are still on their way.

Owns what a step needs beside the pool: which layers have landed (board.py), helper processes that
compute `xAB` from the image in host memory (helpers.py), and the hand-over of rows and answers
between them and the device (handover.py). Does not know requests, plans or why a way was chosen
(server/scheduling/cold_start.py). Used by paged_model.py and by the link, which fills the board.
"""
