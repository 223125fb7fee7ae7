"""Wire protocols, pure: read the envelope, find usage and the end of a stream, shape an error. No network."""
