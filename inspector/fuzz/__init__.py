"""Structure-aware fuzzing of everything that reads an image.

::

    from inspector.fuzz import base, run, targets

    target = targets.make("decode", [base.tiny("linux-7.3")])
    report = run.run(target, run.Plan(seed=1, count=10_000, jobs=2))
    print(report.counts, report.keys)

``base`` takes an image apart into places that mean something, ``mutate`` changes them by their
meaning, ``targets`` and ``buffers`` say what consumes the result, ``external`` hands it to any
command, ``guard`` judges one case, ``run`` does many, ``shrink`` makes a failing one small,
``cases`` stores and repeats it. The survey of a decoding (``placed``) is what a mutator knows
about an image; see ``docs/fuzzing.md``.
"""
