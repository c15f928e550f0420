"""The drawn catalogue: garments of known attributes, photographed in a studio of numbers, with texts that name them.

products: which there are, their wording and files. garments: attributes and values. uppers, lowers: silhouettes as
SVG. studio: cloth, light and camera.
"""
