create or replace view fleet.adoption_progress as
select * from fleet.import_progress;

comment on view fleet.adoption_progress is 'Old name of fleet.import_progress; goes in 0.3.';
