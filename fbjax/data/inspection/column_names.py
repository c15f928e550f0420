"""Names of columns in exports of shops, in several languages, and how well a name fits a role."""

import re
import unicodedata

from fbjax.data.text.scripts import UNSPACED

NAMES = {  # best first
    "id": """id productid sku articleid itemid asin gtin ean upc handle code productcode articlenumber itemnumber uid
        artikelnummer artnr artikelnr produktnummer produktid reference ref codigo codice idproduit idproducto
        referencia referenza codigoproducto numeroarticle artikelcode varenummer artikel
        商品id 商品编号 产品编号 商品编码 产品编码 商品編號 產品編號 货号 貨號 编号 編號 编码 条码
        商品番号 商品コード 商品管理番号 管理番号 品番 型番 番号 상품번호 상품코드 제품번호 제품코드 품번 번호
        รหัสสินค้า รหัส артикул кодтовара номертовара код رقمالمنتج رمزالمنتج كودالمنتج معرفالمنتج الرمز""",
    "title": """title producttitle productname productdisplayname displayname prodname itemname name headline titel
        bezeichnung artikelbezeichnung produktname artikelname titre nom nomproduit libelle designation titulo nombre
        nombreproducto titolo nome nomeprodotto naam productnaam nazwa navn namn text
        商品名称 商品标题 产品名称 产品标题 宝贝标题 商品名稱 商品標題 產品名稱 标题 標題 名称 名稱 品名
        商品名 製品名 商品タイトル タイトル 名前 상품명 제품명 상품이름 품명 제목 이름
        ชื่อสินค้า ชื่อผลิตภัณฑ์ ชื่อ названиетовара наименованиетовара название наименование заголовок
        اسمالمنتج عنوانالمنتج العنوان عنوان الاسم اسم""",
    "more": """caption shortdescription subtitle description desc detaildesc productdescription bodyhtml longdescription
        details kurzbeschreibung beschreibung artikelbeschreibung descriptif descripcion descrizione descricao
        omschrijving beschrijving opis 商品描述 产品描述 商品介绍 商品详情 副标题 描述 详情 简介 商品說明
        商品説明 商品説明文 説明文 説明 商品詳細 詳細 상품설명 제품설명 상세설명 설명
        รายละเอียดสินค้า รายละเอียด คำอธิบาย описаниетовара описание وصفالمنتج الوصف وصف""",
    "category": """subcategory productcategory category articletype producttype productgroup categories categoryname
        producttypename class department type taxonomy mastercategory googleproductcategory warengruppe kategorie
        unterkategorie produktgruppe produktart categorie souscategorie rayon famille categoria subcategoria
        sottocategoria reparto familia kategoria categorienaam
        商品类别 商品分类 商品类目 产品类别 产品分类 类别 分类 类目 品类 商品分類 類別 分類
        商品カテゴリ カテゴリー カテゴリ ジャンル 種類 카테고리 상품분류 분류 종류
        ประเภทสินค้า หมวดหมู่สินค้า หมวดหมู่ ประเภท подкатегория категория типтовара раздел الفئة فئة التصنيف القسم""",
    "image": """image imagepath imagefile imagefilename imagename filename file img imgpath picture photo photopath
        imagelink imageurl imagesrc mainimage baseimage thumbnail pic path images url bild bilddatei bildpfad foto
        abbildung photoproduit imagen immagine imagem afbeelding zdjecie link
        商品图片 商品主图 图片路径 图片 主图 图像 照片 商品圖片 圖片 商品画像 画像ファイル 画像 写真
        상품이미지 대표이미지 이미지 사진 รูปสินค้า รูปภาพ รูป ภาพ изображение картинка фото صورةالمنتج الصورة صورة""",
    "group": """group groupid itemgroupid parentid parentsku parent parentasin styleid style stylecode modelid model
        modelcode variantof variantgroup masterid mastersku productgroupid familyid gruppe modell modelnummer
        modellnummer modele modelo modello grupo gruppo inputproductid productcode productid spuid spu
        款号 父商品编号 商品组 親商品番号 グループ 상품그룹 그룹 группа модель""",
}
NO_CATEGORY = """brand colour color gender season size age year price currency availability condition marke farbe status
    geschlecht saison grosse preis couleur marque taille prix genero talla precio vendor usage stock active
    品牌 颜色 顏色 尺码 尺寸 性别 季节 年份 价格 库存 ブランド カラー 色 サイズ 性別 季節 価格 在庫
    브랜드 색상 사이즈 성별 계절 가격 재고 แบรนด์ ยี่ห้อ สี ขนาด เพศ ราคา бренд цвет размер пол сезон цена
    الماركة اللون لون المقاس مقاس الجنس السعر سعر"""


def name_score(role: str, name: str) -> float:
    """1 to 2 for a known name, higher for earlier ones; below 1 if the name contains a known word; else 0."""
    known, cleaned = NAMES[role], _cleaned(name)
    if cleaned in known:
        return 2 - known.index(cleaned) / len(known)
    within = [place for place, word in enumerate(known) if word in _words(name) or _unspaced_part(word, cleaned)]
    return 1 - (min(within) + 1) / (len(known) + 1) if within else 0.0


def is_attribute(name: str) -> bool:
    """Whether a name says that the column holds a property that products of any kind share, such as a colour."""
    return any(word in _words(name) or _unspaced_part(word, _cleaned(name)) for word in NO_CATEGORY)


def _unspaced_part(word: str, name: str) -> bool:
    """Whether a name of a script without spaces contains a known word of two letters or more."""
    return len(word) > 1 and word in name and UNSPACED.match(word) is not None


def _words(name: str) -> set[str]:
    parts = re.split(r"[\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", _without_marks(name)))
    return {_cleaned(part) for part in parts}


def _cleaned(name: str) -> str:
    """Only letters and digits, without case and accents."""
    return re.sub(r"[\W_]+", "", _without_marks(name).casefold())


def _without_marks(name: str) -> str:
    decomposed = unicodedata.normalize("NFKD", name.replace("ß", "ss"))
    return "".join(letter for letter in decomposed if unicodedata.category(letter)[0] != "M")


NAMES = {role: [_cleaned(name) for name in names.split()] for role, names in NAMES.items()}
NO_CATEGORY = [_cleaned(name) for name in NO_CATEGORY.split()]
