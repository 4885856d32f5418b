create or replace procedure fleet.abandon_adoption(p_source regclass, inout p_state text default null)
language plpgsql
as $$
begin
  call fleet.abandon_import(p_source, p_state);
end
$$;

comment on procedure fleet.abandon_adoption(regclass, text) is 'Old name of fleet.abandon_import(); goes in 0.3.';
