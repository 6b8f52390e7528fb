"""The report: numbers (`data`), drawings (`figures`) and the page that shows them (`page`)."""
