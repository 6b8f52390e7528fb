"""Stage report: numbers (`data`), drawings (`figures`), the page and the terminal's tables that show them."""
