"""From records to words, tables, figures and pages. Needs pandas and matplotlib, not torch."""
