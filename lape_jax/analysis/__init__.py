"""What a trained model has made of its position embedding: numbers and figures for those who study it.

    effective_pe       the position as the attention of each layer sees it, for every joining and table
    correlation        cosine similarity of positions by layer (the paper's equation 12, figures 1, 3 and 4)
    locality           how far a position looks like others, how strongly, and how two-dimensional that is
    reparam            lambda_1 to lambda_3 of equation 7
    energy             how strong the position is beside the tokens
    activations        the last two measured on images
    attention          where heads look, and what makes their logits; attention_figures: its files
    features           tokens of layers as vectors
    probes             what can be read off them; position_probe: where a patch lies
    resolution         accuracy by image size
    study              all of it for one model, and its figures
    plots              figures of arrays, whatever they are of
    overhead           what LaPE costs beside the default joining (the paper's tables 5 and 6)
    overhead_table     its table

Layers are numbered from 1, as in the paper: layer 1 is the first block. Rows of class and distillation tokens are left
out, so that row n of a table is patch (n // columns, n % columns).
"""
