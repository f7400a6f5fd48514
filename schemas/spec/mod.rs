//! The YAML language: text → PipelineSpec with spans. The only place that knows YAML.
