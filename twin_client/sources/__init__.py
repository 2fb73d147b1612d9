"""Where records come from: serial tags and loggers, cameras and folders of images, recordings, a simulated mine."""
