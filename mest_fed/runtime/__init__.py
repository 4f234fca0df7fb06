"""Programs: a training step as a list of operators over numbered buffers, made once, run anywhere.

Read ``program.py`` first, then ``operators.py``, the table of all operators. A program is made
where torch is (``mest_fed/nn/capture.py``) and needs NumPy alone from then on: ``gradients.py`` and
``updates.py`` add the backward operators and the optimizer, ``passes/`` makes the same step
cheaper, ``arena.py`` gives each buffer its place in memory. ``step.py`` trains with it by
``native.py``, the compiled operators; ``reference.py`` runs it right and slowly.
"""
