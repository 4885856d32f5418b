-- (ingest) --

-- Functions, procedures, views

--!include ingest/add_field.sql

--!include setup/grants.sql
