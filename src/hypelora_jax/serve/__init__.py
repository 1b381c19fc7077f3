"""An optional HTTP service that answers for finished runs that share one backbone.

It does not know models, training or file formats, and only `commands` imports this
package.
"""
