create table if not exists fleet.recorded_forms (
  object text not null,
  form text not null,
  constraint recorded_forms_pkey primary key (object)
);

comment on table fleet.recorded_forms is
  'A hash of each function and view that npm run migrate has installed in a distributed store; written by fleet.record_forms(). '
  'Empty in a plain store.';
comment on column fleet.recorded_forms.object is 'The function with its arguments, or the view, with its schema.';
comment on column fleet.recorded_forms.form is 'What fleet.form_of() returned for it.';

--!include scaling/form_of.sql
--!include scaling/record_forms.sql
--!include checks/nodes_away.sql
--!include checks/check_nodes.sql
--!include checks/check.sql
--!include checks/check_sessions.sql
--!include import/describe_source.sql
--!include access/create_reader.sql
--!include ingest/device_heartbeats.trigger.sql
--!include status/device_last_status.trigger.sql
--!include setup/grants.sql
