"""A small local stand-in for Bilibili: pages, API and CDN, with faults that can be switched on."""
