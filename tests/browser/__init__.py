"""Tests of the pages and of the JavaScript client in Chromium."""
