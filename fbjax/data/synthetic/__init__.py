"""The drawn catalogue: pictures of garments with known attributes, and texts that name these attributes.

words: attributes, values and texts. garments: colours and kinds. tops, bottoms: outlines as SVG. renderer: cloth, light
and camera. products: the catalogue's products and files. hdf5: the same in Fashion-Gen's format.
"""
