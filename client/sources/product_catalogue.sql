-- The product catalogue: every product, one row each, for PostgreSQL.
--
--   product_id   Product.Id
--   title        Product.Title
--   url          of the product's image with index 0; NULL where there is none
--   description  of the product's description for 'us': the translated text, unless that is NULL or blank, else
--                the original text, whatever it holds; NULL where there is no 'us' description
--
-- Of several images with index 0, and of several 'us' descriptions, the one with the lowest Id counts.
-- 'us' is compared as it is written here: 'US' is another code. Blank is text of nothing but whitespace: the
-- characters that Unicode calls White_Space, spelt out because \s depends on the locale of the database.
--
-- Needs no index: each table is read once, however many products there are. These two spare the sorting, where
-- the planner finds that cheaper:
--   CREATE INDEX ON Image (ProductId, Id) WHERE ImageIndex = 0;
--   CREATE INDEX ON ProductDescription (ProductId, Id) WHERE CountryCode = 'us';
SELECT
    Product.Id AS product_id,
    Product.Title AS title,
    FirstImage.Url AS url,
    CASE
        WHEN UsDescription.TranslatedText
            ~ '[^\u0009-\u000D\u0020\u0085\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000]'
        THEN UsDescription.TranslatedText
        ELSE UsDescription.OriginalText
    END AS description
FROM Product
LEFT JOIN (
    SELECT DISTINCT ON (ProductId) ProductId, Url
    FROM Image
    WHERE ImageIndex = 0
    ORDER BY ProductId, Id
) AS FirstImage ON FirstImage.ProductId = Product.Id
LEFT JOIN (
    SELECT DISTINCT ON (ProductId) ProductId, TranslatedText, OriginalText
    FROM ProductDescription
    WHERE CountryCode = 'us'
    ORDER BY ProductId, Id
) AS UsDescription ON UsDescription.ProductId = Product.Id
ORDER BY Product.Id;
