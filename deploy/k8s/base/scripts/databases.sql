-- Run once, by the image, on the empty server: two programs, each with a database and a role of its own.
\getenv faregate_password FAREGATE_DATABASE_PASSWORD
\getenv openwebui_password OPENWEBUI_DATABASE_PASSWORD

CREATE ROLE faregate LOGIN PASSWORD :'faregate_password';
CREATE DATABASE faregate OWNER faregate;
REVOKE ALL ON DATABASE faregate FROM PUBLIC;

CREATE ROLE openwebui LOGIN PASSWORD :'openwebui_password';
CREATE DATABASE openwebui OWNER openwebui;
REVOKE ALL ON DATABASE openwebui FROM PUBLIC;

\connect openwebui
CREATE EXTENSION vector;
