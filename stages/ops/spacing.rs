//! A spacing as it is asked for: millimetres for every axis, or for some.

use schemars::JsonSchema;
use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use voxmill_schemas::geometry::Zyx;

/// A spacing an axis; 0 keeps what is there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SpacingMm(pub Zyx<f64>);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Axes {
    /// Along the slices, mm.
    z: Option<f64>,
    /// Along the rows' stack, mm.
    y: Option<f64>,
    /// Along a row, mm.
    x: Option<f64>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code)]
enum NumberOrAxes {
    Number(f64),
    Axes(Axes),
}

impl JsonSchema for SpacingMm {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SpacingMm".into()
    }
    fn json_schema(g: &mut schemars::SchemaGenerator) -> schemars::Schema {
        NumberOrAxes::json_schema(g)
    }
}

/// By hand, because an untagged enum would only say that nothing matched.
impl<'de> Deserialize<'de> for SpacingMm {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = SpacingMm;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("millimetres as a number, or as { z, y, x }")
            }
            fn visit_f64<E>(self, v: f64) -> Result<SpacingMm, E> {
                Ok(SpacingMm(Zyx::splat(v)))
            }
            fn visit_u64<E>(self, v: u64) -> Result<SpacingMm, E> {
                Ok(SpacingMm(Zyx::splat(v as f64)))
            }
            fn visit_i64<E>(self, v: i64) -> Result<SpacingMm, E> {
                Ok(SpacingMm(Zyx::splat(v as f64)))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SpacingMm, A::Error> {
                let a = Axes::deserialize(MapAccessDeserializer::new(map))?;
                Ok(SpacingMm(Zyx::new(a.z, a.y, a.x).map(Option::unwrap_or_default)))
            }
        }
        d.deserialize_any(Either)
    }
}
