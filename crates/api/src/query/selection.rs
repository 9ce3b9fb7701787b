//! Selection of the keys of an item: `?fields=` (contract section 3, "Pages").

use std::borrow::Cow;
use std::fmt::Display;

use contracts::{CallbackSecret, Delivery, ErrorType, Run};
use serde::ser::{Error, Impossible, Serialize, SerializeStruct, Serializer};
use serde_json::{Value, json};
use utoipa::openapi::schema::AnyOfBuilder;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::query::params::{Fault, Query, describe};

/// An object of the API whose keys can be selected.
pub(crate) trait Item: Serialize + ToSchema {
    /// Nested keys that are shown only if selected, in the form `part.key`.
    const HIDDEN: &'static [&'static str] = &[];
}

impl Item for Run {}

impl Item for CallbackSecret {}

impl Item for Delivery {
    const HIDDEN: &'static [&'static str] = &["attempts.timing"];
}

/// The selected keys. `None` selects all but the hidden ones.
pub(crate) struct Selection(Option<Vec<String>>);

impl Selection {
    /// Takes the parameter `fields`.
    pub(crate) fn of<T: Item>(query: &mut Query) -> Selection {
        Selection(query.take("fields", parse::<T>))
    }

    /// Returns `fields` as given, or `None` if it was absent.
    pub(crate) fn text(&self) -> Option<String> {
        self.0.as_ref().map(|names| names.join(","))
    }

    /// Whether the `key` of the item is shown. A selected nested key shows its part.
    pub(crate) fn shows(&self, key: &str) -> bool {
        let is_it = |name: &String| name.split('.').next() == Some(key);
        self.0.as_ref().is_none_or(|names| names.iter().any(is_it))
    }

    /// Whether the hidden `key` is shown.
    pub(crate) fn shows_hidden(&self, key: &str) -> bool {
        self.0.as_ref().is_some_and(|names| names.iter().any(|name| name == key))
    }

    /// Wraps the item so that only its selected keys are serialized.
    pub(crate) fn apply<T>(&self, item: T) -> Selected<'_, T> {
        Selected { item, selection: self }
    }
}

/// Describes the query parameter that selects keys of `T`.
pub(crate) fn parameter<T: Item>() -> Value {
    let names = json!({"type": "string", "enum": names::<T>()});
    let schema = json!({"type": "array", "items": names, "minItems": 1, "uniqueItems": true});
    let hidden = match T::HIDDEN {
        [] => String::new(),
        hidden => format!(" All but `{}` unless given.", hidden.join("`, `")),
    };
    let mut parameter = describe("fields", &schema, &format!("Keys to return, separated by commas.{hidden}"));
    parameter["style"] = json!("form");
    parameter["explode"] = json!(false);
    parameter
}

fn names<T: Item>() -> Vec<String> {
    let RefOr::T(Schema::Object(object)) = T::schema() else { unreachable!("an item is an object") };
    object.properties.into_keys().chain(T::HIDDEN.iter().map(ToString::to_string)).collect()
}

fn parse<T: Item>(text: &str) -> Result<Vec<String>, Fault> {
    let known = names::<T>();
    let mut named: Vec<String> = Vec::new();
    for name in text.split(',') {
        if !known.iter().any(|known| known == name) {
            return Err((ErrorType::Enum, format!("there is no key `{name}`, only {}", known.join(", "))));
        }
        if named.iter().any(|earlier| earlier == name) {
            return Err((ErrorType::Duplicate, format!("`{name}` is named twice")));
        }
        named.push(name.to_owned());
    }
    Ok(named)
}

/// An item that serializes only its selected keys, in their usual order.
pub(crate) struct Selected<'a, T> {
    item: T,
    selection: &'a Selection,
}

impl<T: Serialize> Serialize for Selected<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.item.serialize(Selecting { inner: serializer, selection: self.selection })
    }
}

impl<T: Item> PartialSchema for Selected<'_, T> {
    fn schema() -> RefOr<Schema> {
        let whole_or_part = [T::name(), partial_name::<T>()].map(Ref::from_schema_name);
        whole_or_part.into_iter().fold(AnyOfBuilder::new(), AnyOfBuilder::item).into()
    }
}

impl<T: Item> ToSchema for Selected<'_, T> {
    fn name() -> Cow<'static, str> {
        format!("Selected{}", T::name()).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        T::schemas(schemas);
        schemas.push((T::name().into(), T::schema()));
        let mut partial = T::schema();
        if let RefOr::T(Schema::Object(object)) = &mut partial {
            object.required.clear();
            object.description = Some("The keys that were named in `fields`.".to_owned());
        }
        schemas.push((partial_name::<T>().into(), partial));
    }
}

fn partial_name<T: Item>() -> Cow<'static, str> {
    format!("Partial{}", T::name()).into()
}

/// Serializer of the selected fields of a struct. Other fields are not even serialized.
struct Selecting<'a, S> {
    inner: S,
    selection: &'a Selection,
}

impl<S: SerializeStruct> SerializeStruct for Selecting<'_, S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), S::Error> {
        if self.selection.shows(key) { self.inner.serialize_field(key, value) } else { self.skip_field(key) }
    }

    fn skip_field(&mut self, key: &'static str) -> Result<(), S::Error> {
        self.inner.skip_field(key)
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.inner.end()
    }
}

fn no_struct<T, E: Error>() -> Result<T, E> {
    Err(E::custom("an item is a struct"))
}

/// Serializer methods that items never call.
macro_rules! unused {
    ($($method:ident($($argument:ty),*) -> $ok:ident;)*) => {$(
        fn $method(self, $(_: $argument),*) -> Result<Self::$ok, S::Error> {
            no_struct()
        }
    )*};
}

impl<'a, S: Serializer> Serializer for Selecting<'a, S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeStruct = Selecting<'a, S::SerializeStruct>;
    type SerializeSeq = Impossible<S::Ok, S::Error>;
    type SerializeTuple = Impossible<S::Ok, S::Error>;
    type SerializeTupleStruct = Impossible<S::Ok, S::Error>;
    type SerializeTupleVariant = Impossible<S::Ok, S::Error>;
    type SerializeMap = Impossible<S::Ok, S::Error>;
    type SerializeStructVariant = Impossible<S::Ok, S::Error>;

    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeStruct, S::Error> {
        Ok(Selecting { inner: self.inner.serialize_struct(name, len)?, selection: self.selection })
    }

    unused! {
        serialize_bool(bool) -> Ok;
        serialize_i8(i8) -> Ok;
        serialize_i16(i16) -> Ok;
        serialize_i32(i32) -> Ok;
        serialize_i64(i64) -> Ok;
        serialize_u8(u8) -> Ok;
        serialize_u16(u16) -> Ok;
        serialize_u32(u32) -> Ok;
        serialize_u64(u64) -> Ok;
        serialize_f32(f32) -> Ok;
        serialize_f64(f64) -> Ok;
        serialize_char(char) -> Ok;
        serialize_str(&str) -> Ok;
        serialize_bytes(&[u8]) -> Ok;
        serialize_none() -> Ok;
        serialize_unit() -> Ok;
        serialize_unit_struct(&'static str) -> Ok;
        serialize_unit_variant(&'static str, u32, &'static str) -> Ok;
        serialize_seq(Option<usize>) -> SerializeSeq;
        serialize_tuple(usize) -> SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> SerializeTupleVariant;
        serialize_map(Option<usize>) -> SerializeMap;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> SerializeStructVariant;
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<S::Ok, S::Error> {
        no_struct()
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: &T,
    ) -> Result<S::Ok, S::Error> {
        no_struct()
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<S::Ok, S::Error> {
        no_struct()
    }

    fn collect_str<T: Display + ?Sized>(self, _: &T) -> Result<S::Ok, S::Error> {
        no_struct()
    }
}
