"""An optional HTTP service that answers for finished runs that share one backbone.

Models, training and file formats may not come in, and only `commands` imports this
package.
"""
