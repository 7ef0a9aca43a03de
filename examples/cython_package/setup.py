"""Build the one module, with the headers of the fastlstm that is installed."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import fastlstm

module = Extension("watching", ["watching.pyx"], include_dirs=[fastlstm.get_include()])

setup(ext_modules=cythonize([module]))
