"""Text with page or line numbers from PDFs, Word documents, web pages and plain text, one module per kind."""
