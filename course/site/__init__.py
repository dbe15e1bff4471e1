"""The course as a static site: `course site` builds it with Sphinx, MyST-NB and sphinx-book-theme.

Nothing is executed but the drawing of explores, and nothing is fetched, neither while it is built
nor by its pages. `build.build` writes the whole site or nothing. Needs the extra `site`.
"""
