"""Lightning callbacks: model selection, the metric log, cost meters, stop signals."""
