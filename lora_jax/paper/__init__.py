"""The tables of the LoRA paper (Hu et al., arXiv 2106.09685): recipes, the runs that they need, our figures beside its.

``conf/experiment/<name>.yaml`` is a recipe. `runner` trains its runs, `selection` has the rules that turn runs into
figures, `table` compares these with the paper's (``tables/*.csv``), and `render` and `figure` write the files.
"""
