//! What the services we imitate publish about their APIs, taken at test time from pinned packages.

pub mod openapi;
