"""Audits at the end of training, one module for each training framework.

>>> from analyzer.callbacks.lightning import AuditCallback
>>> from analyzer.callbacks.transformers import AuditCallback
"""
