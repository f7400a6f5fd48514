//! The engine: load, plan, run, lineage.
