"""Video generation with the published STARFlow-V: conversion, generation, requirements."""
